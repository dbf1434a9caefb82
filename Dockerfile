# Two images from one file:
#   docker build --target gateway -t cynosure-gateway .    HTTP only, no torch
#   docker build --target worker  -t cynosure-worker .     torch, diffusers and the bundled packs
FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH \
    CYNOSURE_METRICS_HOST=0.0.0.0 \
    CYNOSURE_METRICS_PORT=9464
RUN useradd --system --uid 10001 --create-home cynosure \
    && install --directory --owner=10001 --mode=0700 /home/cynosure/.cache

FROM base AS build
WORKDIR /src
RUN python -m venv /opt/venv
COPY pyproject.toml README.md LICENSE ./
COPY cynosure cynosure
COPY jobs jobs
COPY app app
COPY docs/errors.md docs/errors.md
COPY workers workers
COPY models models

FROM build AS build-gateway
# DL3013 asks for pinned packages; here the package is this checkout, and pyproject.toml has the ranges.
# The wheel holds all packages; the gateway never imports these two, and the weights are most of its size.
# hadolint ignore=DL3013
RUN pip install '.[gateway,traces]' \
    && rm -r /opt/venv/lib/python3.11/site-packages/models /opt/venv/lib/python3.11/site-packages/workers

# From `base`, not `build`: this layer is gigabytes and must not be made again for a change in the source.
FROM base AS torch
# Options for pip, such as an index that has the CPU build of torch, or one for another CUDA: PyPI's for x86-64 has CUDA.
# Unquoted below, for they are several words.
ARG TORCH_PIP_ARGS=""
# hadolint ignore=DL3013,SC2086
RUN python -m venv /opt/venv && pip install torch==2.13.0 ${TORCH_PIP_ARGS}

FROM torch AS build-worker
WORKDIR /src
COPY --from=build /src /src
# hadolint ignore=DL3013
RUN pip install '.[worker,memory,traces]'

FROM base AS gateway
COPY --from=build-gateway /opt/venv /opt/venv
USER 10001
WORKDIR /home/cynosure
EXPOSE 8000 9464
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-Pc", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8000, timeout=2); c.request('GET', '/healthz'); assert c.getresponse().status == 200"]
CMD ["cynosure", "serve", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
COPY --from=build-worker /opt/venv /opt/venv
USER 10001
WORKDIR /home/cynosure
EXPOSE 9464
# Healthy: it takes jobs, and its store answers. A dead engine ends the process, which the restart policy sees.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-Pc", "import os; from http.client import HTTPConnection as C; c = C('127.0.0.1', int(os.environ['CYNOSURE_METRICS_PORT']), timeout=4); c.request('GET', '/readyz'); assert c.getresponse().status == 200"]
CMD ["cynosure", "worker"]
