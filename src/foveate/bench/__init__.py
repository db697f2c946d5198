"""Speed, memory and cost of dropping, measured as ratios beside their controls."""
