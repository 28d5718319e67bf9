<?php
// Sends one mail with PHPMailer; the order is JSON on standard input.
require getenv('PHPMAILER') ?: 'libphp-phpmailer/autoload.php';

use PHPMailer\PHPMailer\PHPMailer;

$order = json_decode(stream_get_contents(STDIN), true);
$account = $order['account'];
$order = $order['mail'];

$mail = new PHPMailer(true);
$mail->CharSet = 'UTF-8';
$mail->isSMTP();
// What the server says goes into no exception of PHPMailer's when AUTH fails, only into this.
$mail->SMTPDebug = 2;
$mail->Debugoutput = fn ($line) => fwrite(STDERR, "$line\n");
$mail->Host = $account['host'];
$mail->Port = $account['port'];
$mail->SMTPAuth = true;
$mail->Username = $account['username'];
$mail->Password = $account['password'];
$mail->SMTPAutoTLS = false;
$mail->SMTPSecure = ['plain' => '', 'starttls' => PHPMailer::ENCRYPTION_STARTTLS, 'tls' => PHPMailer::ENCRYPTION_SMTPS][$account['security']];
$mail->SMTPOptions = ['ssl' => ['cafile' => $account['authority']]];
try {
    $mail->setFrom($order['from']['address'], $order['from']['name']);
    foreach ($order['to'] as $person) {
        $mail->addAddress($person['address'], $person['name']);
    }
    foreach ($order['cc'] as $person) {
        $mail->addCC($person['address'], $person['name']);
    }
    foreach ($order['bcc'] as $person) {
        $mail->addBCC($person['address'], $person['name']);
    }
    $mail->Subject = $order['subject'];
    if ($order['html']) {
        $mail->isHTML();
        $mail->Body = $order['html'];
        $mail->AltBody = $order['text'];
    } else {
        $mail->Body = $order['text'];
    }
    if ($order['attachment']) {
        $file = $order['attachment'];
        $mail->addStringAttachment(base64_decode($file['content']), $file['filename'], PHPMailer::ENCODING_BASE64, $file['type']);
    }
    $mail->send();
} catch (Exception $error) {
    fwrite(STDERR, $error->getMessage());
    exit(1);
}
