"""Zero-shot ranking by prompted language and vision-language models, judged as trained models are."""
