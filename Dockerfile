# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY . .
# The build checks queries against .sqlx/ and needs no database. The cache mounts are not part of the image, so the
# binary is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    SQLX_OFFLINE=true cargo build --release --locked --bin easel \
    && cp target/release/easel /usr/local/bin/easel

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin easel \
    && install -d -o easel -g easel -m 0700 /data
COPY --from=build /usr/local/bin/easel /usr/local/bin/easel

# The image has no PostgreSQL for a private database: set DATABASE_URL. Generated images go to /data
# unless EASEL_STORAGE__URL names an S3 bucket.
ENV EASEL_DATA_DIR=/data \
    EASEL_SERVER__LISTEN=0.0.0.0:8080
# Numeric, so that an orchestrator can verify that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["easel", "healthcheck"]
ENTRYPOINT ["easel"]
