"""hfserve: what an archive needs to answer requests with a Hugging Face transformer."""
