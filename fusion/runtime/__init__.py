"""The ground floor: typed records, files, devices, processes. Imports no other room."""
