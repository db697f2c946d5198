"""What needs no torch: files, texts, tables, numbers. Commands that refuse or list stay quick for it."""
