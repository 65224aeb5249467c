// Package tarlayer turns tar streams of OCI layers into directory trees and back.
package tarlayer
