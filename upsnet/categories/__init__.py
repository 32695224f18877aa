"""The classes of a data set, and the only translation between their numberings."""

from upsnet.categories.category_set import IGNORE_LABEL, Category, CategorySet, label_from_semantic, semantic_from_label
from upsnet.categories.known import known_categories

__all__ = ["IGNORE_LABEL", "Category", "CategorySet", "known_categories", "label_from_semantic", "semantic_from_label"]
