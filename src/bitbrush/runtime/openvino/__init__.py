"""The executor on OpenVINO's integer kernels; nothing here imports the package openvino before it is asked for."""
