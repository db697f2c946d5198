"""What rough use found, number by number: each was seen to fail before it was mended."""
