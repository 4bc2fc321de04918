"""What differs between databases; everything else is said once, with SQLAlchemy."""
