"""Stored pictures as streams: folders, archives, tables and videos, decoded once."""
