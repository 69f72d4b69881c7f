package proxy

var NameProtocols = nameProtocols
