"""Small files of TensorFlow Lite, sound or not, written with FlatBuffers."""

from __future__ import annotations

import flatbuffers
import numpy as np
import tflite
from flatbuffers import flexbuffers

TYPES = {"float32": 0, "float16": 1, "int32": 2, "int8": 9}


def _vector(builder, numbers, add, size=4):
    builder.StartVector(size, len(numbers), size)
    for number in reversed(numbers):
        add(number)
    return builder.EndVector()


def _options(builder, table, words):
    getattr(tflite, f"{table}Start")(builder)
    for word, value in words.items():
        getattr(tflite, f"{table}Add{word}")(builder, value)
    return getattr(tflite, f"{table}End")(builder)


def sparse(shape, starts, indices):
    """What :func:`tiny_model` needs to know of a matrix whose rows are sparse."""
    return {"shape": shape, "starts": starts, "indices": indices}


def flexbuffer(options):
    """The bytes of an operation's own options; lists of whole numbers become typed vectors."""
    builder = flexbuffers.Builder()
    with builder.Map():
        for word, value in options.items():
            builder.Key(word)
            if isinstance(value, list):
                builder.TypedVectorFromElements(value)
            else:
                builder.Add(value)
    return bytes(builder.Finish())


def _sparsity(builder, about):
    ends = []
    for word, numbers in (("Segments", about["starts"]), ("Indices", about["indices"])):
        values = _vector(builder, numbers, builder.PrependInt32)
        tflite.Int32VectorStart(builder)
        tflite.Int32VectorAddValues(builder, values)
        ends.append((word, tflite.Int32VectorEnd(builder)))
    axes = []
    for axis, length in enumerate(about["shape"]):
        is_last = axis == len(about["shape"]) - 1
        tflite.DimensionMetadataStart(builder)
        tflite.DimensionMetadataAddFormat(builder, int(is_last))
        tflite.DimensionMetadataAddDenseSize(builder, length)
        if is_last:
            for word, place in ends:
                getattr(tflite, f"DimensionMetadataAddArray{word}Type")(builder, 1)
                getattr(tflite, f"DimensionMetadataAddArray{word}")(builder, place)
        axes.append(tflite.DimensionMetadataEnd(builder))
    metadata = _vector(builder, axes, builder.PrependUOffsetTRelative)
    order = _vector(builder, list(range(len(about["shape"]))), builder.PrependInt32)
    tflite.SparsityParametersStart(builder)
    tflite.SparsityParametersAddTraversalOrder(builder, order)
    tflite.SparsityParametersAddDimMetadata(builder, metadata)
    return tflite.SparsityParametersEnd(builder)


def tiny_model(tensors, operations, *, inputs=(0,), outputs=(-1,)):
    """Return the bytes of a model.

    Parameters
    ----------
    tensors : each a shape, for what is computed; or an array; or (array, :func:`sparse`).
    operations : each (name, inputs, output, options); one of MediaPipe's own has its options as
        bytes.
    """
    builder = flatbuffers.Builder(1024)
    buffers, made = [np.zeros(0, np.uint8)], []
    for tensor in tensors:
        about = None
        if isinstance(tensor, tuple) and isinstance(tensor[-1], dict):
            tensor, about = tensor
        is_weight = isinstance(tensor, np.ndarray)
        shape = about["shape"] if about else tensor.shape if is_weight else tensor
        sparsity = _sparsity(builder, about) if about else None
        lengths = _vector(builder, [int(length) for length in shape], builder.PrependInt32)
        tflite.TensorStart(builder)
        tflite.TensorAddShape(builder, lengths)
        tflite.TensorAddType(builder, TYPES[tensor.dtype.name] if is_weight else 0)
        tflite.TensorAddBuffer(builder, len(buffers) if is_weight else 0)
        if sparsity is not None:
            tflite.TensorAddSparsity(builder, sparsity)
        made.append(tflite.TensorEnd(builder))
        if is_weight:
            buffers.append(np.frombuffer(tensor.tobytes(), np.uint8))
    codes, done = [], []
    for number, (name, used, result, options) in enumerate(operations):
        table = {"CONV_2D": "Conv2DOptions", "ADD": "AddOptions"}.get(name)
        table = table or {"MAX_POOL_2D": "Pool2DOptions", "MUL": "MulOptions"}.get(name)
        packed = _options(builder, table, options) if table else None
        is_own = isinstance(options, bytes)
        own = builder.CreateByteVector(options) if is_own else None
        own_name = builder.CreateString(name) if is_own else None
        ends = [_vector(builder, list(one), builder.PrependInt32) for one in (used, (result,))]
        tflite.OperatorStart(builder)
        tflite.OperatorAddOpcodeIndex(builder, number)
        tflite.OperatorAddInputs(builder, ends[0])
        tflite.OperatorAddOutputs(builder, ends[1])
        if packed is not None:
            tflite.OperatorAddBuiltinOptionsType(builder, getattr(tflite.BuiltinOptions, table))
            tflite.OperatorAddBuiltinOptions(builder, packed)
        if is_own:
            tflite.OperatorAddCustomOptions(builder, own)
        done.append(tflite.OperatorEnd(builder))
        tflite.OperatorCodeStart(builder)
        code = getattr(tflite.BuiltinOperator, "CUSTOM" if is_own else name)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(builder, code)
        if is_own:
            tflite.OperatorCodeAddCustomCode(builder, own_name)
            tflite.OperatorCodeAddVersion(builder, 2)
        codes.append(tflite.OperatorCodeEnd(builder))
    return _finished(builder, made, done, codes, buffers, inputs, outputs)


def _finished(builder, tensors, operations, codes, buffers, inputs, outputs):
    places = []
    for content in buffers:
        values = builder.CreateNumpyVector(content)
        tflite.BufferStart(builder)
        tflite.BufferAddData(builder, values)
        places.append(tflite.BufferEnd(builder))
    count = len(tensors)
    ends = [
        _vector(builder, [number % count for number in one], builder.PrependInt32)
        for one in (inputs, outputs)
    ]
    lists = [
        _vector(builder, one, builder.PrependUOffsetTRelative) for one in (tensors, operations)
    ]
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, lists[0])
    tflite.SubGraphAddInputs(builder, ends[0])
    tflite.SubGraphAddOutputs(builder, ends[1])
    tflite.SubGraphAddOperators(builder, lists[1])
    graph = tflite.SubGraphEnd(builder)
    whole = [
        _vector(builder, one, builder.PrependUOffsetTRelative) for one in ([graph], places, codes)
    ]
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddOperatorCodes(builder, whole[2])
    tflite.ModelAddSubgraphs(builder, whole[0])
    tflite.ModelAddBuffers(builder, whole[1])
    builder.Finish(tflite.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())
