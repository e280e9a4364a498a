"""Plain HDF5 files, and simple ones that others made."""

from kpstore.interop.base import Format
from kpstore.interop.hdf5.layout import recognises
from kpstore.interop.hdf5.read import Hdf5Import
from kpstore.interop.hdf5.write import Hdf5Export

HDF5 = Format(
    "hdf5",
    "A plain, self-describing HDF5 file for h5py users; and rows of frames from simple HDF5 files.",
    importer=Hdf5Import,
    exporter=Hdf5Export,
    recognises=recognises,
    examples=(
        "export hdf5 phoenix.kps phoenix.h5",
        "export hdf5 phoenix.kps dev.h5 --split dev --compression gzip",
        "import hdf5 phoenix.h5 phoenix.kps",
        "import hdf5 features.h5 features.kps --dataset group/features",
    ),
)
