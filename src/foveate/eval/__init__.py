"""What dropping costs in quality: methods at budgets against the full model, on the same questions."""
