"""What a server's /metrics shows besides vLLM's own: how many vision tokens requests had, and how many stayed."""

from prometheus_client import Counter

__all__ = ["KEPT", "SEEN"]

SEEN = Counter("foveate:vision_tokens", "Vision tokens of the images and videos of requests, before any are dropped.")
KEPT = Counter("foveate:vision_tokens_kept", "How many of these a decoder layer processes, averaged over the layers.")
