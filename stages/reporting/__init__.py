"""What is said about the numbers: tables, summaries and figures. An edit here trains nothing."""
