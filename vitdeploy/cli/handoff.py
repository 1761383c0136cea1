"""Write what another program needs to serve a bundle, and a README about what it does otherwise than the bundle.

  vitdeploy handoff lemevit --to triton -o repository
  vitdeploy handoff lemevit --to triton --engine model.plan --max-batch 16 -o repository
  vitdeploy handoff lemevit --to openvino-model-server -o models      (or --to ovms)
  vitdeploy handoff lemevit --to deepstream -o nvinfer
  vitdeploy handoff lemevit --to dlstreamer -o gvaclassify
  vitdeploy handoff lemevit --to trtexec -o build
  vitdeploy handoff lemevit --to cpp -o classify

triton is a model repository, openvino-model-server its like with a config.json; both have a file for KServe. deepstream
is a configuration of nvinfer, dlstreamer a model-proc of gvaclassify, both for classifiers of images. trtexec has a
script for each generation of TensorRT, and cpp is a program in C++ with ONNX Runtime, OpenVINO or TensorRT, which
checks itself against the reference. What a program cannot be told of the preprocessing is built into the model where
that is possible, and the model is then compared with the bundle's. The same bundle gives the same files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vitdeploy.cli.arguments import add_key

HELP = "files for what serves the bundle: Triton, DeepStream, C++ and others"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `vitdeploy handoff`."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--to",
        required=True,
        metavar="D",
        help="triton, openvino-model-server, deepstream, dlstreamer, trtexec or cpp",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the new folder")
    parser.add_argument("--name", metavar="N", help="what the network is called there (default: its own name)")
    parser.add_argument("--engine", type=Path, metavar="FILE", help="an engine of TensorRT, for triton")
    parser.add_argument("--max-batch", type=int, metavar="N", help="images of one call where the batch is free")
    parser.add_argument("--force", action="store_true", help="replace a folder that an earlier hand-off wrote")
    add_key(parser)


def run(args: argparse.Namespace) -> int:
    """Write the files, and say what differs."""
    from vitdeploy.serving.handoff import handoff

    report = handoff(
        args.bundle,
        args.output,
        to=args.to,
        name=args.name,
        engine=args.engine,
        max_batch=args.max_batch,
        key=args.key,
        force=args.force,
    )
    print(json.dumps(report.to_dict()) if args.json else report)
    return 0
