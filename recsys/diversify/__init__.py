"""Re-ranking: relevance against variety inside one list."""
