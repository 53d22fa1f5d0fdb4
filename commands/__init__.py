"""The commands of `mer` in files by what they work on, and what these files share.
group.py says which there are.
"""
