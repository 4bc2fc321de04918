"""Text as full text sees it: words into terms, records into documents."""
