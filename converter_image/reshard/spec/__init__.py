"""Requests of users, and messages between processes: frozen, validated data. The operator imports no other subpackage."""
