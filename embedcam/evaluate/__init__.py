"""How good are the maps and the embeddings: scores against masks and labels."""
