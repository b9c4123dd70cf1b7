"""Raw content to feature tables: extractors for text and images, and the store they write to."""
