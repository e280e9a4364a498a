"""What is fuzzed: readers of foreign files, lists, stores, weights, pictures and videos."""

from __future__ import annotations

from benchmarks.fuzz import foreign, lists, media, models, stores
from benchmarks.fuzz.rules import MEMORY_BYTES, Target, at, texts
from kpstore.extractors.dinov2_weights import describe_weights
from kpstore.extractors.lip_weights import read_lip_checkpoint
from kpstore.extractors.tflite_network import load_tflite
from kpstore.interop.split_files import read_splits
from kpstore.schema.face_lists import load_face_list
from kpstore.sources.lip_lists import list_folders

_PICTURES_BYTES = 3 * MEMORY_BYTES
"""Pillow and FFmpeg have a picture in memory too, with up to four bytes for each pixel."""

_pickle, _slt = foreign.exported("pickle"), foreign.exported("slt")
_npz = foreign.imports("npz", "train_keypoints.npz")

TARGETS = {
    target.name: target
    for target in (
        Target("pickle", foreign.imports("pickle", "x.pkl"), _pickle),
        Target("json", foreign.imports("json", "x.json"), texts(foreign.PERSONS)),
        Target("npz", _npz, foreign.exported("npz")),
        Target("npz_array", foreign.inside_npz(_npz), foreign.arrays_of_npz),
        Target("npz_stats", foreign.npz_stats, texts(foreign.NPZ_STATS)),
        Target(
            "embeddings",
            foreign.imports("embeddings", "a_embedding.npz", in_folder=True),
            foreign.embeddings,
        ),
        Target("pose", foreign.imports("pose", "a.pose"), foreign.exported("pose"), inputs=20_000),
        Target("slt", foreign.imports("slt", "x.train"), _slt),
        Target(
            "slt_pickle",
            foreign.inside_gzip(foreign.imports("slt", "x.train")),
            foreign.unpacked(_slt),
        ),
        Target("hdf5", foreign.imports("hdf5", "x.h5"), foreign.hdf5_files, inputs=20_000),
        Target("splits", at("splits.csv", read_splits), texts(*lists.SPLITS)),
        Target("phoenix", at(lists.PHOENIX, lists.phoenix), texts(lists.PHOENIX_LIST)),
        Target("lip_config", at("conf.yaml", list_folders), texts(lists.LIP_CONFIG)),
        Target("lip_list", at("lists/s1.json", lists.lip_list), texts(lists.LIP_LIST)),
        Target("face_list", at("faces.json", load_face_list), texts(lists.FACE_LIST)),
        Target("store_hdf5", stores.hdf5, stores.hdf5_seeds),
        Target("hdf5_record", stores.hdf5_record, stores.hdf5_records),
        Target("store_icechunk", stores.icechunk, stores.icechunk_seeds),
        Target("ledger", stores.ledger, stores.ledgers),
        Target("description", stores.description, stores.descriptions),
        Target("progress", stores.progress, stores.progresses),
        Target("lock", stores.lock, stores.locks),
        Target("decoded", stores.decoded, stores.decoded_seeds),
        Target("statistics", stores.kept_statistics, stores.kept_seeds),
        Target("weights_lip", at("x.pth", read_lip_checkpoint), models.torch_files),
        Target("weights_safe", at("x.safetensors", read_lip_checkpoint), models.safetensors_files),
        Target("weights_dinov2", at("x.pth", describe_weights), models.torch_files),
        Target("weights_config", models.config, texts(models.CONFIG)),
        Target("weights_index", models.shards, texts(models.SHARDS)),
        Target("weights_tflite", at("x.tflite", load_tflite), models.tflite_files),
        Target("predictor", at("x.safetensors", models.predictor), models.predictors),
        Target("predictor_about", models.about_predictor, models.abouts_predictor),
        Target("run", at("x.safetensors", models.resumed), models.resumed_seeds),
        Target("run_about", models.about_run, models.abouts_run),
        Target("journal", at("steps.csv", models.journal), texts(models.JOURNAL)),
        Target("picture", at("x.png", media.picture), media.pictures, _PICTURES_BYTES),
        Target("video", media.video, media.videos, _PICTURES_BYTES),
        Target("crops", media.crops, media.crops_seeds),
    )
}
