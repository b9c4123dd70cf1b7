"""NoteLLM-2: item vectors from a language model that reads an item's text and sees its picture."""
