"""The feature store: features of a frozen network, written once and reused by every later task, head and method."""

from head2toe.store.feature_store import FeatureStore, default_location
from head2toe.store.view import Compaction, Damage, View, ViewInfo

__all__ = ["Compaction", "Damage", "FeatureStore", "View", "ViewInfo", "default_location"]
