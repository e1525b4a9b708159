"""Data sets, their readers, and the subsets on which models are trained."""

from mixdef.data.catalogue import CATALOGUE, check_name, is_path_or_hub, load
from mixdef.data.dataset import Dataset, to_float
from mixdef.data.duplicates import duplicate_records
from mixdef.data.schema import Column, Schema
from mixdef.data.subsets import disjoint_splits, subsets, validate_members

__all__ = [
  "CATALOGUE",
  "Column",
  "Dataset",
  "Schema",
  "check_name",
  "disjoint_splits",
  "duplicate_records",
  "is_path_or_hub",
  "load",
  "subsets",
  "to_float",
  "validate_members",
]
