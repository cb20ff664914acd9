"""Where everything is kept: one folder (``./.yard`` unless told), opened by ``store.open_store``."""

from modelyard.store.store import Store as Store
from modelyard.store.store import open_store as open_store
