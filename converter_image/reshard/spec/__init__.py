"""What a user asks for, and what one process is to carry out: frozen, validated data. The operator knows no other room."""
