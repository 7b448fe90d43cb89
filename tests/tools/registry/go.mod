// A registry of images, in memory.
module reshard.dev/tests/tools/registry

go 1.26

tool github.com/google/go-containerregistry/cmd/registry

require github.com/google/go-containerregistry v0.22.1 // indirect
