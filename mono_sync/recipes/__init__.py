"""Ways of working with buckets that many programs need; buckets offer them as methods."""

from mono_sync.recipes._lock import Lock
from mono_sync.recipes._retry import BoundedRetry, RetryAttempt, RetryDetails, RetryHook, RetryPolicy
from mono_sync.recipes._switch import retries

__all__ = ["BoundedRetry", "Lock", "RetryAttempt", "RetryDetails", "RetryHook", "RetryPolicy", "retries"]
