"""Load labelled images: the published data sets, and users' own images."""

from tasks.datasets.base import ArrayDataset, Dataset, Split
from tasks.datasets.cifar import SAMPLE
from tasks.datasets.cifar_classes import CIFAR10_CLASSES, CIFAR100_CLASSES
from tasks.datasets.decoding import Listing
from tasks.datasets.labelled_images import ImageSource, list_images
from tasks.datasets.load import check_folders, count_images, dataset_info, load_dataset
from tasks.datasets.source import (
    DATA_VARIABLE,
    DATASETS,
    NAMES,
    USERS,
    DatasetInfo,
    DataSource,
    corruption_table_of,
    source_from,
    table_for,
)

__all__ = [
    "CIFAR10_CLASSES",
    "CIFAR100_CLASSES",
    "DATASETS",
    "DATA_VARIABLE",
    "NAMES",
    "SAMPLE",
    "USERS",
    "ArrayDataset",
    "DataSource",
    "Dataset",
    "DatasetInfo",
    "ImageSource",
    "Listing",
    "Split",
    "check_folders",
    "corruption_table_of",
    "count_images",
    "dataset_info",
    "list_images",
    "load_dataset",
    "source_from",
    "table_for",
]
