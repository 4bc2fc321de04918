"""The durable tier: the SQL database, the only truth."""
