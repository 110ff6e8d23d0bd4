# The proxy, and what `mesh-proxy capture apply` sets rules with: nft, and the older iptables for kernels whose nft knows
# no redirection. Built from the root of the repository:
#   docker build -f deploy/images/proxy.Dockerfile -t mesh/proxy .
FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends nftables iptables && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --locked --profile dist -p mesh-proxy --bin mesh-proxy \
    && cp target/dist/mesh-proxy /usr/local/bin/ \
    && deploy/images/collect /image /usr/local/bin/mesh-proxy /usr/sbin/nft /usr/sbin/xtables-legacy-multi \
       /usr/lib/*-linux-gnu/xtables/libxt_*.so /usr/lib/*-linux-gnu/xtables/libip*.so \
    && for family in iptables ip6tables; do for what in '' -save -restore; do \
         ln -s xtables-legacy-multi /image/usr/sbin/$family$what; \
       done; done

FROM scratch
COPY --from=build /image /
ENV PATH=/usr/local/bin:/usr/sbin
# The init container that redirects runs as root; everything else as this user, whose traffic is not redirected.
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/mesh-proxy"]
