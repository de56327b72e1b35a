"""How one kind of client speaks, one module each: which path means which operation, and what a path may hold."""
