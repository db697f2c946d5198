"""Files, texts, tables and numbers, without torch, so that usage errors and lists stay fast."""
