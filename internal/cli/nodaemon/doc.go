// Package nodaemon answers the command line's requests where no daemon does. It
// owns the choice between the two and nothing of the answers: those come from
// "holdfastd observe", which it starts for as long as the command runs, and
// which reads the last daemon's files and asks the containers' shims.
package nodaemon
