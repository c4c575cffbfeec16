# The local cluster and the images. Included by the top Makefile.
CLUSTER := .local/bin/llamero-cluster

.PHONY: cluster-packages cluster-program cluster-build cluster-up cluster-down cluster-status cluster-load images
cluster-packages:
	@tests/cluster/install-debian.sh

# The program that does it all; it stays where it is while it runs.
cluster-program:
	@cargo build --locked --quiet --release --workspace --bin llamero-cluster
	@mkdir -p $(dir $(CLUSTER))
	@install -C $${CARGO_TARGET_DIR:-.local/target}/*-linux-*/release/llamero-cluster $(CLUSTER)

cluster-build: cluster-packages cluster-program ## Build Kubernetes and its tools from pinned sources into .local/bin (once, about 10 minutes)
	@$(CLUSTER) build
	@images/build.sh pause
	@images/build.sh toolbox

cluster-up: cluster-build ## Start a real Kubernetes on this machine: make cluster-up NODES=3
	@$(CLUSTER) up --nodes $(NODES)

cluster-down: cluster-program ## Stop the cluster and take everything back
	@$(CLUSTER) down

cluster-status: cluster-program ## Show what of the cluster runs
	@$(CLUSTER) status

images: cluster-packages ## Build the container images into .local/images
	@images/build.sh

cluster-load: images cluster-program ## Make the images known to the nodes of the running cluster
	@$(CLUSTER) import-image .local/images/llamero.tar .local/images/llamero-worker.tar
