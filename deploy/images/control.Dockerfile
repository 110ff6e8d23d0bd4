# The control plane: one program, its libraries, nothing else. Built from the root of the repository:
#   docker build -f deploy/images/control.Dockerfile -t mesh/control .
FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --locked --profile dist -p mesh-control --bin mesh-control \
    && cp target/dist/mesh-control /usr/local/bin/ \
    && deploy/images/collect /image /usr/local/bin/mesh-control

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/local/bin
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/mesh-control"]
