"""What was found out about a network, as plain data: its channel groups, what they cost, and the plan of a cut."""
