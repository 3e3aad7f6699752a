# The service of docs/serve.md:
#   docker build -t fcos .
#   docker run --rm -p 8000:8000 -v "$PWD/runs/train/best.safetensors:/model.safetensors:ro" fcos

FROM python:3.12-slim

# PyTorch for CPUs. For a GPU: --build-arg TORCH_INDEX=https://pypi.org/simple, where it comes with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"

COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir '/source[demo,onnx]' && rm -r /source

RUN useradd --create-home fcos
USER fcos
WORKDIR /home/fcos

EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=5)"]
# No shell: `docker stop` must reach the service, which then answers what it has begun.
ENTRYPOINT ["fcos", "serve", "--host", "0.0.0.0"]
CMD ["/model.safetensors"]
