"""How long a command will take, and a recipe that fits into so many minutes."""
