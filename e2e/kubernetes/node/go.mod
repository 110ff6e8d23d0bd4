module mesh.test/kubernetes/node

go 1.26.0
