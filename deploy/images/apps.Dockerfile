# The applications of the samples: one program, which is also meshctl. Built from the root of the repository:
#   docker build -f deploy/images/apps.Dockerfile -t mesh/apps .
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --locked --profile dist -p mesh-cli --bin meshctl \
    && cp target/dist/meshctl /usr/local/bin/ \
    && deploy/images/collect /image /usr/local/bin/meshctl

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/meshctl"]
