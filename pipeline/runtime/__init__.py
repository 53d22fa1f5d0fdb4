"""The ground floor: what every room stands on. Imports nothing of mer but its errors."""
