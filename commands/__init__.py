"""The commands of `mer`: a file for each group of them that the help shows, and what they share.
group.py says which there are.
"""
