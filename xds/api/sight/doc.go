// Package sight is the protocol by which proxies tell tacitd what they have
// seen. Everything but this file is generated from sight.proto.
package sight
