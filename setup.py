"""Packaging: ``se3_fast`` from its folder, ``se3_fast.kernels`` from the top-level folder ``kernels``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "se3_fast" / "__init__.py").read_text()).group(1)

setup(
    name="se3_fast",
    version=VERSION,
    description="Fast SE(3)-Transformers: equivariant graph attention for 3D points, in PyTorch",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["se3_fast", "se3_fast.*"]), "se3_fast.kernels"],
    package_dir={"se3_fast": "se3_fast", "se3_fast.kernels": "kernels"},
    package_data={"se3_fast": ["py.typed"], "se3_fast.data": ["sample.npz"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=1.24",
        "e3nn>=0.5.1",
        "tqdm>=4.60",
        "torchmetrics>=1.0",
        "tensorboard>=2.10",
        "matplotlib>=3.6",
        "requests>=2.28",
        "pytorch_optimizer>=3.0",
    ],
    extras_require={
        "dgl": ["dgl>=1.1"],
        "pyg": ["torch_geometric>=2.3"],
        "chem": ["rdkit>=2023.3", "tblite>=0.3"],
        "logging": ["wandb>=0.15"],
        "test": ["pytest>=8", "pytest-benchmark>=4", "pytest-xdist>=3", "psutil>=5.9", "triton>=3.6; platform_system == 'Linux'"],
    },
    entry_points={"console_scripts": ["se3-fast-train=se3_fast.train:main", "se3-fast-inference=se3_fast.inference:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "License :: OSI Approved :: MIT License",
        "Topic :: Scientific/Engineering :: Chemistry",
    ],
)
