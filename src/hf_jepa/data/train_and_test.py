"""The rows that something is fitted on and the rows that it is scored on, which are never the same."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .labels import fit_and_score, hold_out
from .splits import WAYS_OUT, Source


@dataclass(frozen=True)
class SplitChoice:
    """
    Which rows a score is about.

    Args:
        dataset (`str` or `Path`, *optional*): that has both splits.
        train_split (`str`, *optional*): that is fitted on, slices included; `"train"`, or the only split there is.
        test_split (`str`, *optional*): that is scored; `"test"`, or the only split of a `test_dataset`.
        train_dataset (`str` or `Path`, *optional*), test_dataset (`str` or `Path`, *optional*): instead of `dataset`.
        holdout (`float`, *optional*): share of the rows of `train_split`, in every class alike, that is drawn with
            `seed` to be scored; there is no other test split then.
        max_train (`int`, *optional*), max_test (`int`, *optional*): use this many rows, drawn with `seed`.
        seed (`int`): of the draws.

    Raises:
        ValueError: for no dataset, or a hold-out beside a test split.
    """

    dataset: str | Path | None = None
    train_split: str | None = None
    test_split: str | None = None
    train_dataset: str | Path | None = None
    test_dataset: str | Path | None = None
    holdout: float | None = None
    max_train: int | None = None
    max_test: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.holdout is not None and (self.test_split or self.test_dataset):
            raise ValueError("A hold-out is drawn from the train split: give no test split or test dataset beside it.")
        if self.dataset is None and self.test_name is None:
            raise ValueError("No dataset is given to score on: --dataset, or --test-dataset.")

    @property
    def train_name(self) -> str | Path | None:
        """`str` or `Path`: The dataset that is fitted on."""
        return self.train_dataset or self.dataset

    @property
    def test_name(self) -> str | Path | None:
        """`str` or `Path`: The dataset that is scored."""
        return self.train_name if self.holdout is not None else self.test_dataset or self.dataset

    def rows(
        self,
        open_split: Callable[[str | Path, str | None], Source],
        column: str,
        label_column: str | None,
        fits: bool = True,
    ) -> "ChosenRows":
        """
        Args:
            open_split (`Callable`): opens a dataset, given its name and the split that will be asked for.
            column (`str`): of images, videos or texts.
            label_column (`str`, *optional*): of labels.
            fits (`bool`): whether something is fitted; otherwise there is no train split, and of a dataset that has
                one split only, that one is scored.

        Returns:
            [`ChosenRows`]: with equal labels for equal classes.

        Raises:
            ValueError: for a split that does not exist, splits that share rows, or test classes that train lacks.
        """
        if self.holdout is not None:
            rows = open_split(self.test_name, self.train_split).take(self.train_split)
            train, test = hold_out(rows, label_column, self.holdout, self.seed)
            split = f"{self.holdout:.0%} of {self.train_split or 'train'}, held out with seed {self.seed}"
        else:
            other = open_split(self.test_name, self.test_split)
            is_same = fits and str(self.test_name) == str(self.train_name)
            lone = len(other.splits) == 1 and "test" not in other.splits and not is_same
            split = self.test_split or ("all" if lone else "test")
            test, train = other.take(split), None
            if fits:
                if self.train_name is None:
                    raise ValueError("No dataset is given to fit on: --dataset, or --train-dataset.")
                source = open_split(self.train_name, self.train_split)
                train = source.take(self.train_split)
            if is_same:
                _refuse_overlap(source, self.train_split, split)
        test = subset(test, self.max_test, self.seed)
        if not fits:
            return ChosenRows(None, test, split)
        train = subset(train, self.max_train, self.seed)
        return ChosenRows(*fit_and_score(train, test, column, label_column), split)


@dataclass(frozen=True)
class ChosenRows:
    """
    Args:
        train (`datasets.Dataset`, *optional*): that is fitted on, if anything is.
        test (`datasets.Dataset`): that is scored.
        split (`str`): what `test` is, for the record.
    """

    train: Any | None
    test: Any
    split: str


def subset(rows: Any, limit: int | None, seed: int) -> Any:
    """At most `limit` rows of a dataset, drawn with a seed, in its order."""
    if limit is None or limit >= len(rows):
        return rows
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[:limit]))


def _refuse_overlap(source: Source, train_split: str | None, test_split: str | None) -> None:
    for name, start, stop in source.ranges(train_split):
        for other, first, end in source.ranges(test_split):
            if name == other and max(start, first) < min(stop, end):
                raise ValueError(
                    f"The splits {train_split or 'train'!r} and {test_split!r} of {source.name!r} share rows "
                    f"{max(start, first)} to {min(stop, end) - 1} of {name!r}: a score on them is of rows that were "
                    f"learned. {WAYS_OUT}"
                )
