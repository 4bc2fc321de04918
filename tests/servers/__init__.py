"""Real servers for the tests: PostgreSQL and Redis from wheels, and a TCP proxy that makes their faults."""
