// Runs the block for Go of docs/clients.md, which takes the place of the line RECIPE: go run net_smtp_recipe.go SUBJECT
package main

import (
	"fmt"
	"net/smtp"
	"os"
)

func main() {
	from, to := "you@example.com", []string{"to@x.example"}
	message := []byte("From: you@example.com\r\nTo: to@x.example\r\nSubject: " + os.Args[1] + "\r\n\r\nHello\r\n")
	// RECIPE
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
